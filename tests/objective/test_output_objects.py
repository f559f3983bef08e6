"""Losses of output objects: a loss that leaves out padding is refused, whatever else the object holds."""

import pytest
import torch
import torch.nn.functional as F

import lowhanging as lh

transformers = pytest.importorskip("transformers")


def language_model():
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def shifted(out, labels):
    return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def test_padding_in_a_loss_fn_of_an_output_object_is_refused():
    """The object has a cache beside the logits, which can't be cut into examples."""
    tokens = torch.randint(0, 20, (4, 12), generator=torch.Generator().manual_seed(0))
    padded = tokens.clone()
    padded[:2, 4:] = -100
    with pytest.raises(ValueError, match=r"(?s)loss_fn is not the mean over the targets.*batch_loss="):
        lh.Objective(language_model(), [(tokens, padded)], loss_fn=shifted)
    whole = lh.Objective(language_model(), [(tokens, tokens)], loss_fn=shifted)
    assert float(whole(whole.theta0)) == pytest.approx(
        float(shifted(language_model()(tokens), tokens).detach()), rel=1e-5
    )

"""The command `lowhanging reproduce`: every claim of the post, measured; one file per theme."""

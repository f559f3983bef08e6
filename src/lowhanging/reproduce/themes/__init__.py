"""The themes of the report: each measures, and states its claims."""

"""One folder = one claim: protocol, baselines, run and committed result. Nothing in `zoo` imports this."""

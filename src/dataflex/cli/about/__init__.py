"""Commands about this installation: env, completion, version."""

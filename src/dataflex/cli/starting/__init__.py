"""Commands that give a configuration to start from: init, examples."""

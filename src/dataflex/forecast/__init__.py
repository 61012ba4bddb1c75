"""What a run will do, before it is started: from its configuration and a look at its data. No model is loaded."""

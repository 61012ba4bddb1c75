"""What ranks say to each other, and the engine they train on."""

"""The figures by which a finished model is judged: losses, multiple choice, generated answers."""

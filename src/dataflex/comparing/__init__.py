"""Comparing methods: a grid of trainings over seeds, and a table that says what helped, by how much, and what is noise."""

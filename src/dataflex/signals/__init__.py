"""What can be measured on a sample. A measurement leaves no trace in the training run."""

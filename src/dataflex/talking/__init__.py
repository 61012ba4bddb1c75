"""What a run says while it goes on, and where the output of the libraries goes. Fed by events alone."""

"""One file per algorithm. See `contracts` for what each family is given and returns."""

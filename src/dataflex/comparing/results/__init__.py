"""What came out: figures of runs, statistics, tables and files."""

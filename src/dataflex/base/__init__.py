"""The only code that imports llamafactory: entry, per-domain data sets, launch."""

"""The networks behind the parts' values; everything here needs torch."""

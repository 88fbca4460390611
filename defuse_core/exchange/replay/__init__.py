"""A manifest run again, and what came out compared with what it says."""

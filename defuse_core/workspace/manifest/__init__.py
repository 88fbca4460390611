"""What a result stands on, as one JSON document: data, runs, settings, labels, checksums."""

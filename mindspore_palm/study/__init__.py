"""Studies: networks that differ in one thing, trained alike with several seeds, and compared with intervals."""

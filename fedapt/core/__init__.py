"""What everything else stands on: errors, configuration, seeds, records, files. No torch."""

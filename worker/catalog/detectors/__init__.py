"""Tables that recognise files and components: one for each kind, read by the detector in one order."""

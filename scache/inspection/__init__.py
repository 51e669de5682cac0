"""Looking inside: images of a database, reports and checks. Nothing here runs in the daemon."""

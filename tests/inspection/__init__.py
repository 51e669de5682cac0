"""Images, reports and checks."""

"""What running daemons show: the exporter."""

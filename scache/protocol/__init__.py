"""The protocol of scache(8), sans-IO: the codec, the messages, and both sides."""

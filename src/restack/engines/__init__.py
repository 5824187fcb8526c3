"""Other engines that run Restack's work."""

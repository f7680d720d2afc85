"""The command `swift-sd`. Heavy imports wait inside the commands, so that `--help` is quick."""

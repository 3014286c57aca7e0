"""The review desk: frames beside their verdicts, what people decide about them, and one case as a file that can be checked."""

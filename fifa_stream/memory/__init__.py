"""What a worker remembers of streams: tracks of people, a smoothed score, segments, a verdict of the stream."""

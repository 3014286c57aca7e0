"""FiFa-Annotator: real/fake pair (or single fake) -> artifact mask -> FICT concepts -> measured evidence -> explanation.

A library by itself: nothing here knows the model, its training or the stream.
"""

"""Where FICT lies on a face, without a mesh: a small network that learns the annotator's regions and serves beside FiFa-MLLM."""

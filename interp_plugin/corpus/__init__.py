"""Studies of a corpus: what each layer keeps of any amount of text, written in parts, resumable, with error bars."""

"""The method, in plain torch: independent of Captum, transformers and text."""

"""The method, in torch alone: nothing here knows Captum, transformers or text."""

"""The OpenAI-compatible server: needs `pip install 'swift-sd[serve]'`."""

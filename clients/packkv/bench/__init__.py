"""`packkv bench`: what PackKV costs and gains, measured where it runs."""

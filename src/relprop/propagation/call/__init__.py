"""The state of one attribution: what it was asked, what rules see, what is named, what is recorded."""

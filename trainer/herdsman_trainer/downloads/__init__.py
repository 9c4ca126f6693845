"""Downloads: files of a hub, a bucket or the web, resumable, verified, and kept by their content."""

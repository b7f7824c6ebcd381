"""The methods: one file each, over the base that they share."""

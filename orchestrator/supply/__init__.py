"""What is brought from elsewhere: weights, data sets, and the record of their digests."""

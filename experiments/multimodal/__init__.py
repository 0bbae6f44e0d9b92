"""One model of text, images, speech and video, trained from scratch, against one model for each of them."""

"""Updates of one multilingual model with new data of a few languages: which ones gain, which lose, and how much.

LAFT-URIEL (Badola, Dave and Talukdar, arXiv 2209.06767, Findings of ACL 2023) in two readings of its abstract, beside
full fine-tuning, parameter-efficient and regularised updates. See README.md.
"""

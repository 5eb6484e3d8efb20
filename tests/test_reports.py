"""Faults that users' programs met, a section each, on both paths; these tests always run whole."""

# 1: a float16 array gets the gradient of a tiny negative double


# 2: Jensen-Shannon where a probability is subnormal


# 3: an element of weight 0 in a row that counts


# 4: the gradient to a weight of 0 beside an infinite term


# 5: a subclass overrides hybrid_forward


# 6: a subclass overrides forward


# 7: memory stays flat whatever number changes


# 8: class indices of any dtype


# 9: one category gives exactly 0


# 10: tiny divergences and extreme temperatures


# 11: numbers that no loss can use are refused where it is made


# 12: shapes left open


# 13: the package imported again


# 14: an array as dtype


# 15: the extra beside other pins of MXNet


# 16: programs that import MXNet first


# 17: check_inputs names the right remedy


# 18: second-order gradients

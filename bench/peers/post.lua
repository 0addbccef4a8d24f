-- For wrk: every request has a body of 64 KiB.
wrk.method = "POST"
wrk.body = string.rep("x", 65536)

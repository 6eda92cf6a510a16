package sdk

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// retrier sends requests with the key and asks again when asking again is safe:
//
//   - 423, 429 and 503 say that nothing was done, so every method is sent again;
//   - a network error is ambiguous (the server may have done the work), so only GET and HEAD are sent again. A refused
//     connection is not: nobody listens, and whoever waits for a server that is starting knows better for how long.
type retrier struct {
	http      *http.Client
	key       string
	userAgent string
	retries   int
	wait      time.Duration
	maxWait   time.Duration
}

// Do implements api.HttpRequestDoer.
func (r *retrier) Do(req *http.Request) (*http.Response, error) {
	req.Header.Set("Authorization", "Bearer "+r.key)
	req.Header.Set("User-Agent", r.userAgent)
	req.Header.Set("Accept", "application/json")
	ctx := req.Context()
	for attempt := 0; ; attempt++ {
		resp, err := r.http.Do(req)
		last := attempt >= r.retries || ctx.Err() != nil || (req.Body != nil && req.GetBody == nil)
		if last || !again(req, resp, err) {
			return resp, err
		}
		pause, asked := time.Duration(0), false
		if resp != nil {
			pause, asked = retryAfter(resp.Header, time.Now())
		}
		if asked {
			if pause > r.maxWait {
				return resp, err
			}
			// Spread over a tenth more, so that those who were refused together do not come back together.
			pause += time.Duration(rand.Float64() * float64(pause) / 10)
		} else {
			pause = backoff(r.wait, r.maxWait, attempt)
		}
		if end, ok := ctx.Deadline(); ok && time.Until(end) < pause {
			return resp, err // the answer in hand says more than "deadline exceeded"
		}
		if resp != nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
			resp.Body.Close()
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
	}
}

func again(req *http.Request, resp *http.Response, err error) bool {
	if err != nil {
		return (req.Method == http.MethodGet || req.Method == http.MethodHead) && !errors.Is(err, syscall.ECONNREFUSED)
	}
	switch resp.StatusCode {
	case http.StatusLocked, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	return false
}

// backoff is half fixed, half random.
func backoff(first, limit time.Duration, attempt int) time.Duration {
	d := limit
	if attempt < 16 && first<<attempt < limit {
		d = first << attempt
	}
	return d/2 + rand.N(d/2+1)
}

// retryAfter reads Retry-After, seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if v == "" {
		return 0, false
	}
	if s, err := strconv.ParseInt(v, 10, 32); err == nil && s >= 0 {
		return time.Duration(s) * time.Second, true
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0), true
	}
	return 0, false
}

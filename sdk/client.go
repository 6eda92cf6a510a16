// Package sdk is the Go client of Bough's API: retries, paging, waiting for operations and typed errors over the
// generated client of package api. A Client is safe for concurrent use.
package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/boughdb/bough/api"
)

// Options configures a Client. BaseURL and APIKey are required.
type Options struct {
	BaseURL    string       // "http://127.0.0.1:8432/api/v2"; without a path, api.BasePath is added
	APIKey     string       // secret, starts with napi_
	HTTPClient *http.Client // default: a client that gives a call 60 s to answer
	UserAgent  string       // default: "bough-go"

	// MaxRetries is how many times an answer of 423, 429 or 503 is asked for again. 0 means 6, a negative number none.
	MaxRetries int
	// RetryWait is the pause before the first retry when the answer has no Retry-After; it doubles each time and is
	// jittered. Default: 250 ms.
	RetryWait time.Duration
	// MaxRetryWait bounds one pause. An answer whose Retry-After is longer is returned as an error at once.
	// Default: 30 s.
	MaxRetryWait time.Duration
	// PollWait is the pause before the second look at an operation; it grows by half each time up to PollWait × 40.
	// Default: 25 ms.
	PollWait time.Duration
	// MaxOutage is how long a wait for an operation puts up with a server that cannot be reached, so that it survives
	// a restart of the server. Default: 15 s; a negative number none.
	MaxOutage time.Duration
}

// Client calls one Bough server with one key.
type Client struct {
	api       *api.Client
	pollWait  time.Duration
	maxOutage time.Duration
}

// maxAnswer bounds what is read of one answer, in bytes.
const maxAnswer = 64 << 20

// New makes a Client. It does not call the server.
func New(opts Options) (*Client, error) {
	base, err := baseURL(opts.BaseURL)
	if err != nil {
		return nil, err
	}
	if opts.APIKey == "" {
		return nil, fmt.Errorf("sdk: APIKey is empty")
	}
	if strings.ContainsFunc(opts.APIKey, func(r rune) bool { return r <= ' ' || r > '~' }) {
		// net/http would refuse the header with a message that quotes it.
		return nil, fmt.Errorf("sdk: APIKey holds a character that cannot be part of a key")
	}
	r := &retrier{
		http: opts.HTTPClient, key: opts.APIKey, userAgent: opts.UserAgent,
		retries: opts.MaxRetries, wait: opts.RetryWait, maxWait: opts.MaxRetryWait,
	}
	if r.http == nil {
		r.http = &http.Client{Timeout: time.Minute}
	}
	if r.userAgent == "" {
		r.userAgent = "bough-go"
	}
	switch {
	case r.retries == 0:
		r.retries = 6
	case r.retries < 0:
		r.retries = 0
	}
	if r.wait <= 0 {
		r.wait = 250 * time.Millisecond
	}
	if r.maxWait <= 0 {
		r.maxWait = 30 * time.Second
	}
	c := &Client{pollWait: opts.PollWait, maxOutage: opts.MaxOutage}
	if c.pollWait <= 0 {
		c.pollWait = 25 * time.Millisecond
	}
	if c.maxOutage == 0 {
		c.maxOutage = 15 * time.Second
	}
	if c.api, err = api.NewClient(base, api.WithHTTPClient(r)); err != nil {
		return nil, fmt.Errorf("sdk: %w", err)
	}
	return c, nil
}

func baseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("sdk: BaseURL %q is not an http or https URL", s)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = api.BasePath
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String(), nil
}

// answer reads a response into T, or into an *Error when the call failed. An empty answer (204) is T's zero value.
func answer[T any](resp *http.Response, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := new(T)
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("sdk: reading the answer of %s %s: %w", resp.Request.Method, resp.Request.URL.Path, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, newError(resp, body)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/json" {
		return nil, fmt.Errorf("sdk: %s answered with %q, not JSON: is BaseURL the address of the API?",
			resp.Request.URL.Redacted(), resp.Header.Get("Content-Type"))
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(out); err != nil {
		return nil, fmt.Errorf("sdk: the answer of %s %s is not what the contract says: %w",
			resp.Request.Method, resp.Request.URL.Path, err)
	}
	return out, nil
}

// need refuses an empty id: as part of a path it would address another resource.
func need(ids ...string) error {
	for i := 0; i+1 < len(ids); i += 2 {
		if v := ids[i+1]; v == "" || v == "." || v == ".." {
			return fmt.Errorf("sdk: %q is not a %s", v, ids[i])
		}
	}
	return nil
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

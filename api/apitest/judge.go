package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/boughdb/bough/api"
)

// Send sends a request as it is to the API at base.
func (r Request) Send(ctx context.Context, base, key string) (status int, header http.Header, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var content io.Reader = bytes.NewReader(r.Body)
	if r.Chunked {
		content = io.MultiReader(content)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, base, content)
	if err != nil {
		return 0, nil, nil, err
	}
	path, query, _ := strings.Cut(r.Path, "?")
	req.URL.Opaque = "//" + req.URL.Host + req.URL.Path + path // unescaped and uncleaned
	req.URL.RawQuery = query
	req.Header.Set("Authorization", "Bearer "+key)
	for name, values := range r.Header {
		req.Header[name] = values
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, res.Header, body, err
}

// Judge says what is wrong with an answer to any request whatever; "" when nothing is: no error of the server's own, and an
// error that a client can read.
func Judge(r Request, status int, header http.Header, body []byte) string {
	switch {
	case status == http.StatusRequestHeaderFieldsTooLarge, status == http.StatusBadRequest && header.Get("X-Request-Id") == "":
		return "" // refused by net/http before the server sees it
	case header.Get("X-Request-Id") == "":
		return "has no request id"
	case status < 400 || r.Method == http.MethodHead:
		if status >= 200 && status < 300 && len(body) > 0 && !json.Valid(body) {
			return "is not JSON"
		}
		return ""
	}
	var e api.Error
	switch err := json.Unmarshal(body, &e); {
	case err != nil:
		return fmt.Sprintf("is no error body: %v", err)
	case e.Code == "" || e.Message == "":
		return "lacks a code or a message"
	case status >= 500 && (status != http.StatusNotImplemented || e.Code != "NOT_IMPLEMENTED"):
		return "is the server's own failure"
	case status == http.StatusUnauthorized && r.Header["Authorization"] == nil:
		return "finds a good key bad"
	case len(e.Message) > 2000:
		return fmt.Sprintf("has a message of %d bytes", len(e.Message))
	case !utf8.ValidString(e.Message), strings.ContainsAny(e.Message, "\x00\r\x1b"):
		return "has a message that cannot be printed"
	case strings.Contains(strings.ToLower(e.Message), "sqlstate"), strings.Contains(e.Message, "pgx"), strings.Contains(e.Message, "goroutine"):
		return "shows the server's insides"
	}
	return ""
}

// WithJSON is the request with a body.
func (r Request) WithJSON(body string) Request {
	r.Header.Set("Content-Type", "application/json")
	r.Body = []byte(body)
	return r
}

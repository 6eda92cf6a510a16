package httpd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/google/uuid"

	"github.com/boughdb/bough/internal/core"
)

// callInfo is what the access log learns about a call while it runs. Only the call's own goroutine touches it.
type callInfo struct {
	requestID string
	operation string
	keyID     int64
}

type infoKey struct{}

// RequestID returns the id of the call that ctx belongs to; "" outside a call.
func RequestID(ctx context.Context) string {
	if info, ok := ctx.Value(infoKey{}).(*callInfo); ok {
		return info.requestID
	}
	return ""
}

func noteCaller(ctx context.Context, c core.Caller, operation string) {
	if info, ok := ctx.Value(infoKey{}).(*callInfo); ok {
		info.keyID, info.operation = c.KeyID, operation
	}
}

// withRequestID adopts the client's request id, or makes one, and sends it back.
func (d *door) withRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-ID")
		if !saneID(id) {
			id = uuid.NewString()
		}
		w.Header().Set("X-Request-ID", id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), infoKey{}, &callInfo{requestID: id})))
	})
}

// saneID keeps what a client sends from forging log lines or filling them.
func saneID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-_.:/+=", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func (d *door) withLog(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := d.opt.Now()
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		info, _ := r.Context().Value(infoKey{}).(*callInfo)
		level := slog.LevelInfo
		if r.Method == http.MethodGet && rec.code() == http.StatusOK { // reads: polls, health checks, scrapes
			level = slog.LevelDebug
		}
		d.log.LogAttrs(r.Context(), level, "http request",
			slog.String("request_id", info.requestID), slog.String("method", r.Method), slog.String("path", r.URL.Path),
			slog.String("operation", info.operation), slog.Int("status", rec.code()), slog.Int64("bytes", rec.bytes),
			slog.Duration("took", d.opt.Now().Sub(start)), slog.Int64("key_id", info.keyID), slog.String("remote", host(r)))
	})
}

func (d *door) withRecover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
			d.log.ErrorContext(r.Context(), "a handler panicked", "request_id", RequestID(r.Context()),
				"method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			if rec, ok := w.(*recorder); ok && rec.status != 0 {
				panic(http.ErrAbortHandler) // half an answer is out: the client must not take it for a whole one
			}
			d.write(w, r, http.StatusInternalServerError, defaultCode(core.KindInternal), "internal error")
		}()
		next.ServeHTTP(w, r)
	})
}

// authenticate finds the caller behind the Authorization header.
func (d *door) authenticate(r *http.Request) (core.Caller, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return core.Caller{}, core.Errorf(core.KindUnauthorized, "",
			"no API key; send it in the header Authorization: Bearer <key>")
	}
	if len(secret) > 512 {
		return core.Caller{}, core.Errorf(core.KindUnauthorized, "", "the API key is not valid")
	}
	caller, err := d.opt.Auth.Authenticate(r.Context(), secret, host(r))
	if err != nil {
		return core.Caller{}, err
	}
	caller.RequestID = RequestID(r.Context())
	return caller, nil
}

// host is the client's address without its port.
func host(r *http.Request) string {
	h, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return h
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int // 0 until the header is out
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// plainJSON undoes the HTML escapes of encoding/json, which the generated server cannot switch off: a connection string
// should read "&" for someone who looks at it with grep. The generated server writes an answer with one Write.
type plainJSON struct{ http.ResponseWriter }

func (p plainJSON) Write(b []byte) (int, error) {
	if !bytes.Contains(b, []byte(`\u00`)) {
		return p.ResponseWriter.Write(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' || i+1 == len(b) {
			out = append(out, b[i])
			continue
		}
		if i+6 <= len(b) {
			if c, ok := htmlEscapes[string(b[i:i+6])]; ok {
				out = append(out, c)
				i += 5
				continue
			}
		}
		out = append(out, b[i], b[i+1]) // the next byte is escaped, and may itself be a backslash
		i++
	}
	if _, err := p.ResponseWriter.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Unwrap lets http.ResponseController through.
func (p plainJSON) Unwrap() http.ResponseWriter { return p.ResponseWriter }

var htmlEscapes = map[string]byte{`\u0026`: '&', `\u003c`: '<', `\u003e`: '>'}

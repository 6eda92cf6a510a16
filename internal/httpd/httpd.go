// Package httpd is the REST door: it authenticates, validates against the contract, calls the use cases and maps their
// results and errors to the API's.
package httpd

import (
	"context"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

// MaxBody is the largest request body in bytes; a larger one gets 413.
const MaxBody = 1 << 20

// Options is what the door needs.
type Options struct {
	UseCases UseCases
	Auth     Authenticator
	Log      *slog.Logger

	// Ready tells whether the server can do its work; nil means always. GET /healthz answers 503 with its error's message.
	Ready func(ctx context.Context) error
	// Metrics serves GET /metrics, without a key; nil answers 404.
	Metrics http.Handler
	// RateLimit bounds authenticated calls; the zero value does not.
	RateLimit RateLimit
	// PublicURL is where people reach the server, without a path; "" takes it from each request.
	PublicURL string
	// MaxCU is the largest compute in compute units, shown to users; 0 shows 16.
	MaxCU float64
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// New returns the handler of the whole server: /api/v2, /docs, /invitation, /healthz and /metrics. It panics when the embedded contract
// cannot be read, which only a broken build can cause.
func New(opt Options) http.Handler {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.MaxCU == 0 {
		opt.MaxCU = 16
	}
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		panic("httpd: the embedded contract: " + err.Error())
	}
	d := &door{guests: newThrottle(RateLimit{Account: guestQuota}), opt: opt, log: opt.Log, mux: http.NewServeMux(), ops: map[string]operation{}}
	if d.docs, err = newDocs(doc, opt.PublicURL); err != nil {
		panic("httpd: the embedded contract: " + err.Error())
	}
	for p, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			d.ops[method+" "+api.BasePath+p] = operation{id: op.OperationID, spec: op}
		}
	}
	strict := api.NewStrictHandlerWithOptions(&handlers{uc: opt.UseCases, now: opt.Now, maxCU: opt.MaxCU}, nil,
		api.StrictHTTPServerOptions{RequestErrorHandlerFunc: d.badRequest, ResponseErrorHandlerFunc: d.fail})
	api.HandlerWithOptions(strict, api.StdHTTPServerOptions{
		BaseURL: api.BasePath, BaseRouter: d.mux, ErrorHandlerFunc: d.badRequest,
	})
	for _, r := range api.Unbuilt() {
		pattern := r.Method + " " + api.BasePath + r.Path
		d.mux.HandleFunc(pattern, d.unbuilt)
		d.ops[pattern] = operation{id: r.OperationID}
	}
	d.limited = d.limit(http.HandlerFunc(d.call))
	d.validated = d.validator(doc)(d.mux)
	return d.withRequestID(d.withLog(d.withRecover(http.HandlerFunc(d.route))))
}

// operation is one route of the API; spec is nil when it is not built.
type operation struct {
	id   string
	spec *openapi3.Operation
}

type door struct {
	opt       Options
	log       *slog.Logger
	mux       *http.ServeMux       // every published operation
	ops       map[string]operation // by the mux's pattern
	docs      *docs
	guests    *throttle    // of calls without a key, by address
	limited   http.Handler // call, behind Options.RateLimit
	validated http.Handler // mux, behind the validator
}

// route finds out what is asked for before it asks for a key, so that an unknown path is a 404 for everyone.
func (d *door) route(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz":
		d.healthz(w, r)
		return
	case "/invitation":
		d.invitation(w, r)
		return
	case "/metrics":
		if d.opt.Metrics != nil {
			d.opt.Metrics.ServeHTTP(w, r)
			return
		}
	}
	if d.serveDocs(w, r) {
		return
	}
	op, ok := d.find(r)
	if !ok {
		if allow := d.allowed(r); len(allow) > 0 {
			d.notAllowed(w, r, strings.Join(allow, ", "))
			return
		}
		d.fail(w, r, core.NotFoundf("there is nothing at %s; the API is at %s, its reference at %s", clip(r.URL.Path), api.BasePath, docsPath))
		return
	}
	caller, err := d.authenticate(r)
	if err != nil {
		if core.IsKind(err, core.KindUnauthorized) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="bough"`)
		}
		d.fail(w, r, err)
		return
	}
	caller.Operation = op.id
	ctx := context.WithValue(r.Context(), callerKey{}, caller)
	ctx = context.WithValue(ctx, operationKey{}, op)
	noteCaller(ctx, caller, op.id)
	d.limited.ServeHTTP(plainJSON{w}, r.WithContext(ctx))
}

// call carries out an authenticated operation.
func (d *door) call(w http.ResponseWriter, r *http.Request) {
	op, _ := r.Context().Value(operationKey{}).(operation)
	if op.spec == nil {
		d.unbuilt(w, r)
		return
	}
	if err := normalize(w, r, op.spec); err != nil {
		d.fail(w, r, err)
		return
	}
	if keys := r.Header.Values("Idempotency-Key"); len(keys) > 0 && makesOnce[op.id] {
		d.once(w, r, keys)
		return
	}
	d.validated.ServeHTTP(w, r)
}

func (d *door) unbuilt(w http.ResponseWriter, r *http.Request) {
	d.fail(w, r, core.Errorf(core.KindNotImplemented, "NOT_IMPLEMENTED",
		"the operation %s is published, but not available on this server yet", Operation(r.Context())))
}

// find returns the operation of a request. A HEAD is none, though the mux would serve it as a GET.
func (d *door) find(r *http.Request) (operation, bool) {
	escaped := r.URL.EscapedPath()
	if r.Method == http.MethodHead || path.Clean(escaped) != escaped {
		return operation{}, false
	}
	_, pattern := d.mux.Handler(r)
	op, ok := d.ops[pattern]
	return op, ok
}

// allowed returns the methods that the request's path has.
func (d *door) allowed(r *http.Request) []string {
	var out []string
	other := *r
	for _, other.Method = range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		if _, ok := d.find(&other); ok {
			out = append(out, other.Method)
		}
	}
	return out
}

func (d *door) healthz(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		d.notAllowed(w, r, "GET, HEAD")
		return
	}
	if d.opt.Ready != nil {
		if err := d.opt.Ready(r.Context()); err != nil {
			d.log.DebugContext(r.Context(), "not ready", "error", err)
			w.Header().Set("Retry-After", "1")
			d.write(w, r, http.StatusServiceUnavailable, "NOT_READY", "not ready: "+core.UserMessage(err))
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("{\"status\":\"ok\"}\n"))
}

type (
	callerKey    struct{}
	operationKey struct{}
)

// CallerFrom returns who makes the call that ctx belongs to; the zero Caller outside an authenticated call.
func CallerFrom(ctx context.Context) core.Caller {
	c, _ := ctx.Value(callerKey{}).(core.Caller)
	return c
}

// Operation returns the operationId of the call that ctx belongs to; "" outside an API call.
func Operation(ctx context.Context) string {
	op, _ := ctx.Value(operationKey{}).(operation)
	return op.id
}

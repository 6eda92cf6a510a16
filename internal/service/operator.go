package service

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/storage"
)

// operatorSocket is where the server answers the operator's verbs that need no key, such as `bough doctor`: a folder of mode
// 0700 keeps everybody else out.
func (l layout) operatorSocket() string { return filepath.Join(l.runDir(), "operator", "sock") }

// operatorDoor serves HTTP on the operator's socket.
type operatorDoor struct {
	path   string
	server *http.Server
	log    *slog.Logger

	mu       sync.Mutex
	listener net.Listener
	closed   bool
	work     sync.WaitGroup
}

func newOperatorDoor(path string, handler http.Handler, log *slog.Logger) *operatorDoor {
	return &operatorDoor{path: path, log: log, server: &http.Server{Handler: handler, ReadHeaderTimeout: readHeaderTimeout}}
}

// Start listens, again when the socket was removed. It is safe to call at any time.
func (d *operatorDoor) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	if d.listener != nil {
		_ = d.listener.Close() // whoever talks goes on
	}
	err := os.MkdirAll(filepath.Dir(filepath.Dir(d.path)), 0o755)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(d.path), 0o700)
	}
	if err == nil {
		err = os.Chmod(filepath.Dir(d.path), 0o700)
	}
	if err != nil {
		return core.Wrap(err, "service.operator", "")
	}
	// The data directory's lock is ours: what is there is a dead server's.
	if err := os.Remove(d.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return core.Wrap(err, "service.operator", "")
	}
	if d.listener, err = new(net.ListenConfig).Listen(ctx, "unix", d.path); err != nil {
		return core.Wrap(err, "service.operator", "")
	}
	listener := d.listener
	d.work.Go(func() {
		if err := d.server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			d.log.Error("the operator's socket does not serve any more", "error", err)
		}
	})
	return nil
}

// Stop ends what is under way and waits for it.
func (d *operatorDoor) Stop(ctx context.Context) {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	if err := d.server.Shutdown(ctx); err != nil {
		_ = d.server.Close()
	}
	d.work.Wait()
}

// ServerFacts is what a running server tells `bough doctor`.
type ServerFacts struct {
	Report      control.Report `json:"report"`
	Domain      string         `json:"domain"`
	Resolves    bool           `json:"resolves"` // names under the domain, on this machine
	Backend     string         `json:"backend"`
	Space       storage.Space  `json:"space"`
	Builds      []string       `json:"postgres"`
	Sizes       string         `json:"compute_sizes"` // whether they are enforced, in words
	CertExpires time.Time      `json:"certificate_expires"`
	LocalCA     bool           `json:"local_authority"` // renews by itself
}

// operatorHandler answers the operator's verbs.
func (s *Server) operatorHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /doctor", func(w http.ResponseWriter, r *http.Request) {
		report, err := s.control.FreshReport(r.Context())
		if err == nil {
			facts := ServerFacts{
				Report: report, Domain: s.cfg.Domain, Resolves: s.control.Addressing.Resolves, Backend: s.storage, Sizes: s.sizes,
				CertExpires: s.certificates.Leaf().NotAfter, LocalCA: s.certificates.CAFile() != "",
			}
			facts.Space, err = s.control.Volumes.Space(r.Context())
			builds, _ := s.control.Builds.Find(r.Context()) // the report has a finding of what is missing
			for _, b := range builds {
				facts.Builds = append(facts.Builds, b.Version)
			}
			if err == nil {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(facts) // the reader is gone
				return
			}
		}
		s.log.Warn("cannot tell the operator", "error", err)
		http.Error(w, core.UserMessage(err), http.StatusServiceUnavailable)
	})
	mux.HandleFunc("GET /history", s.serveHistory)
	mux.HandleFunc("GET /drifts", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.control.OpenDrifts()) // the reader is gone
	})
	return mux
}

// askServer gets an answer from the server of a data directory through its socket.
func askServer(ctx context.Context, l layout, path string, out any) error {
	const op = "service.ask"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", l.operatorSocket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://operator"+path, nil)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	res, err := client.Do(req)
	if err != nil {
		return &core.Error{Kind: core.KindUnavailable, Op: op, Err: err, Message: "the server does not answer on its operator's socket",
			Hint: "run this as the user that runs the server"}
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return core.NotFoundf("%s", strings.TrimSpace(string(said)))
	}
	if res.StatusCode != http.StatusOK {
		return core.Errorf(core.KindUnavailable, "", "the server answers %s; see its log", res.Status)
	}
	return core.Wrap(json.NewDecoder(res.Body).Decode(out), op, "")
}

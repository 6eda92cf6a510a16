package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/certs"
	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/httpd"
	"github.com/boughdb/bough/internal/mail"
	"github.com/boughdb/bough/internal/metering"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/proxy"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

const (
	controlConns = 32 // sessions to the control database
	stopTimeout  = 30 * time.Second
	// Limits of the HTTP server: a slow client holds a connection no longer than this.
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	maxPoll           = 5 * time.Second // between two looks at a compute
)

// AdminFile is what DIR/admin.json holds: all that a client on this machine needs.
type AdminFile struct {
	APIURL    string `json:"api_url"` // ends in /api/v2
	APIKey    string `json:"api_key"` // personal key of the first user
	OrgID     string `json:"org_id"`
	UserID    string `json:"user_id"`
	PGAddr    string `json:"pg_addr"`              // host:port of the proxy
	Sizes     string `json:"sizes"`                // whether the sizes of computes are enforced, in words
	PublicURL string `json:"public_url,omitempty"` // the start of links in invitations; "" is that of the API
}

// DocsURL is where the API's reference can be browsed.
func (a AdminFile) DocsURL() string { return strings.TrimSuffix(a.APIURL, "/api/v2") + "/docs" }

// Server is a running Bough.
type Server struct {
	cfg    Config
	layout layout
	log    *slog.Logger
	closes []func(ctx context.Context) // undone in reverse

	fleet   *fleet
	driver  *local.Driver
	control *control.Service
	store   *store.Store
	metrics *metrics
	admin   AdminFile
	storage string
	sizes   string // see AdminFile

	certificates *certs.Store
	operator     *operatorDoor
}

// Run serves until ctx ends. ready is called once when clients can come.
func Run(ctx context.Context, cfg Config, log *slog.Logger, ready func(*Server)) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	s := &Server{cfg: cfg, layout: layout{cfg.DataDir}, log: log, metrics: newMetrics()}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		for i := len(s.closes) - 1; i >= 0; i-- {
			s.closes[i](stop)
		}
		if others, _ := members(s.layout); cfg.StopComputes && err == nil && len(others) == 0 {
			err = stopProcesses(stop, s.layout, log)
		}
	}()
	if err := s.start(ctx); err != nil {
		return err
	}
	ready(s)
	<-ctx.Done()
	log.Info("stopping; computes keep running unless asked otherwise", "stop_computes", cfg.StopComputes && !s.fleet.Company())
	return nil
}

func (s *Server) onClose(f func(ctx context.Context)) { s.closes = append(s.closes, f) }

// Admin is what clients on this machine need.
func (s *Server) Admin() AdminFile { return s.admin }

// Storage is the name of the storage backend in use.
func (s *Server) Storage() string { return s.storage }

func (s *Server) start(ctx context.Context) error {
	if err := os.MkdirAll(s.layout.logs(), 0o755); err != nil {
		return &core.Error{Kind: core.KindUnavailable, Message: fmt.Sprintf("cannot make the data directory %s; name another one with --data-dir", s.layout.dir), Err: err}
	}
	if err := s.join(ctx); err != nil {
		return err
	}
	cred, err := s.computeUser()
	if err != nil {
		return err
	}
	installed := postgres.NewBuilds(s.cfg.PostgresDirs)
	builds, err := installed.Find(ctx)
	if err != nil {
		if len(builds) == 0 {
			return err
		}
		// Such as a version that was removed: its computes may still run, and the others are not to suffer.
		s.log.Warn("a folder of --postgres-dir is of no use", "error", core.UserMessage(err))
	}
	extensions, err := postgres.ParseAllowList(s.cfg.Extensions)
	if err != nil {
		return err
	}
	if s.driver, err = local.New(cred, s.log); err != nil {
		return err
	}
	uid, gid := -1, -1
	if cred != nil {
		uid, gid = int(cred.Uid), int(cred.Gid)
	}
	pool, err := storage.Open(ctx, storage.Options{
		Dir: s.layout.dir, Backend: s.cfg.Storage, Preallocate: s.cfg.Preallocate, SizeBytes: s.cfg.PoolSize, LimitBytes: s.cfg.PoolLimit, UID: uid, GID: gid,
		HostReserve: s.cfg.HostReserve, PoolReserve: s.cfg.PoolReserve, Log: s.log,
		Maker: strconv.FormatInt(s.fleet.Self(), 10), MakerLives: s.fleet.makerLives,
	})
	if err != nil {
		return err
	}
	s.storage = pool.Backend()
	pool.StartCleaning(context.WithoutCancel(ctx))
	s.onClose(func(context.Context) { pool.StopCleaning() })
	url := s.cfg.DatabaseURL
	if url == "" {
		cluster := &controlDB{layout: s.layout, builds: builds, cred: cred, driver: s.driver, log: s.log}
		if url, err = cluster.start(ctx); err != nil {
			return err
		}
	}
	if s.store, err = store.Open(ctx, url, controlConns); err != nil {
		return err
	}
	s.onClose(func(context.Context) { s.store.Close() })
	if err := s.identify(ctx, pool); err != nil {
		return err
	}
	sealer, err := auth.OpenSealer(s.layout.sealer())
	if err != nil {
		return err
	}
	certificates, err := certs.Load(ctx, certs.Options{
		Dir: s.layout.path("certs"), Domain: s.cfg.Domain, CertFile: s.cfg.TLSCert, KeyFile: s.cfg.TLSKey, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.certificates = certificates
	s.operator = newOperatorDoor(s.layout.operatorSocket(), s.operatorHandler(), s.log)
	groups, ungrouped := s.groups()
	watcher := &control.Watcher{}
	every := cmp.Or(s.cfg.MeteringEvery, metering.DefaultEvery)
	background := context.WithoutCancel(ctx)
	computes := compute.NewManager(background, compute.Options{
		Driver: s.driver, RunDir: s.layout.runDir(), LogDir: s.layout.logs(), Cred: cred, Observer: watcher, Log: s.log,
		Groups: groups, Ungrouped: ungrouped, MaxStarts: s.cfg.MaxStarts, MaxPoll: min(every, maxPoll),
	})
	s.onClose(func(context.Context) { computes.Close() })
	queue, err := ops.New(ctx, s.store, s.fleet, s.log)
	if err != nil {
		return err
	}
	var door *proxy.Server
	meter := metering.New(metering.Options{
		Store: s.store, Computes: computes, Every: every, Log: s.log,
		Report:  func() { door.Report() },
		Counted: func(ctx context.Context, projects []string) { s.control.EnforceQuotas(ctx, projects) },
	})
	s.control = control.New(control.Options{
		Store: s.store, Queue: queue, Computes: computes, Driver: s.driver, Volumes: pool, WAL: history.NewDirs(s.layout.path("wal"), uid, gid),
		Builds: installed, Inspector: postgres.NewInspector(s.layout.builds(), cred),
		Overlays: postgres.NewOverlays(s.layout.builds(), extensions, cred, s.log), Sealer: sealer, Init: postgres.InitOptions{Cred: cred}, DataDir: s.layout.dir, RunDir: s.layout.runDir(),
		Reconcile: control.ReconcileOptions{
			Every: s.cfg.ReconcileEvery, Patience: s.cfg.ReconcilePatience, LogDir: s.layout.logs(),
			Checks: []func(context.Context) []control.Finding{s.checks},
		},
		Addressing: control.Addressing{Domain: s.cfg.Domain, Region: s.cfg.Region, Resolves: resolves(ctx, s.cfg.Domain)},
		Recorder:   s.metrics, Meter: meter, Log: s.log, OperationsKeep: s.cfg.OperationsKeep, Fleet: s.fleet, Peers: queue,
		History: s.cfg.History,
	})
	watcher.S = s.control
	s.metrics.watch(&lookCollector{
		ctx: background, computes: computes, pool: pool, endpoints: s.store.CountEndpoints, drifts: s.control.DriftCounts,
		replicas: s.control.ReplicaLags, meter: meter, history: s.control.HistorySum,
	})
	if s.fleet.alone { // else what is left of dead servers is the leader's to take over
		if err := s.control.Recover(ctx); err != nil {
			return err
		}
		if err := computes.Sweep(ctx); err != nil {
			return err
		}
	}
	s.onClose(func(context.Context) { meter.Stop() }) // after the doors and the queue, which have told it everything by then
	if err := queue.Start(ctx, s.control); err != nil {
		return err
	}
	s.onClose(func(ctx context.Context) { queue.Stop(ctx) })

	door = proxy.New(proxy.Options{
		Addr: s.cfg.PGListen, Directory: directory{s.control.Door()}, Meter: doorMeter{s.metrics, meter}, Domain: s.cfg.Domain,
		GetCertificate: certificates.GetCertificate, AllowPlaintext: s.cfg.AllowPlain,
		HandshakeTimeout: s.cfg.Handshake, MockSecret: sealer.Derive("unknown roles"), Log: s.log,
	})
	meter.Start(ctx)
	if err := door.Start(background); err != nil {
		return err
	}
	s.onClose(func(ctx context.Context) { _ = door.Stop(ctx) })
	_, port, err := net.SplitHostPort(door.Addr().String())
	if err != nil {
		return core.Wrap(err, "service.start", "")
	}
	listening, err := strconv.Atoi(port)
	if err != nil {
		return core.Wrap(err, "service.start", "")
	}
	if s.control.Addressing.Port, err = s.cfg.advertisedPort(listening); err != nil {
		return err
	}
	if err := s.serveHTTP(ctx, door.Addr().String()); err != nil {
		return err
	}
	// Now that everything is there, it can be looked at.
	s.onClose(s.operator.Stop)
	if s.fleet.Leads() {
		if err := s.operator.Start(ctx); err != nil {
			return err
		}
	}
	s.control.Start(ctx)
	s.onClose(func(context.Context) { s.control.Stop() })
	if err := s.fleet.ready(s.admin.APIURL, s.admin.PGAddr); err != nil {
		return err
	}
	s.fleet.Start(ctx, fleetHooks{lead: s.lead, inherit: s.control.Inherit, tick: s.control.Leave})
	s.onClose(func(context.Context) { s.fleet.Stop() })
	return nil
}

// join makes this process a server of the data directory.
func (s *Server) join(ctx context.Context) (err error) {
	if s.fleet, err = joinFleet(ctx, s.layout, s.log); err != nil {
		return err
	}
	s.onClose(func(context.Context) { s.fleet.leave() })
	if !s.fleet.alone {
		s.log.Info("other servers run on this data directory: sharing the work with them")
	}
	err = s.checkPorts(ctx)
	others, _ := members(s.layout)
	for _, m := range others {
		if err != nil && m.Server != s.fleet.Self() {
			return core.Errorf(core.KindUnavailable, "", "a server (pid %d) already runs on %s, at %s and %s; to run another one beside it choose other addresses with --http-listen and --pg-listen, or stop it with: bough down --data-dir %[2]s",
				m.PID, s.layout.dir, m.APIURL, m.PGAddr)
		}
	}
	return err
}

// lead takes over what one server does for clients on this machine.
func (s *Server) lead(ctx context.Context) error {
	return errors.Join(s.saveAdmin(), s.operator.Start(ctx))
}

// checkPorts finds out that a port is busy before anything is mounted or started.
func (s *Server) checkPorts(ctx context.Context) error {
	for flag, addr := range map[string]string{"--http-listen": s.cfg.HTTPListen, "--pg-listen": s.cfg.PGListen} {
		listeners, err := proxy.Listen(ctx, addr, s.log)
		if err != nil {
			return cannotListen(flag, addr, err)
		}
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	return nil
}

func cannotListen(flag, addr string, err error) error {
	return &core.Error{Kind: core.KindUnavailable, Op: "service.listen", Message: "cannot listen on " + addr,
		Hint: "another program may use the port; " + flag + " chooses another one", Err: err}
}

// computeUser is the OS user that computes run as. The first start chooses it for good: the files belong to that user.
func (s *Server) computeUser() (*syscall.Credential, error) {
	path := s.layout.path("compute-user")
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, core.Wrap(err, "service.compute_user", "")
	}
	name := s.cfg.ComputeUser
	if owner := strings.TrimSpace(string(raw)); owner != "" && os.Geteuid() == 0 {
		if name != "" && name != owner {
			return nil, core.Errorf(core.KindPrecondition, "", "the data in %s belongs to the OS user %s; leave --compute-user out", s.layout.dir, owner)
		}
		name = owner
	}
	cred, err := local.Credential(name)
	if err != nil || cred == nil || len(raw) > 0 {
		return cred, err
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(cred.Uid), 10))
	if err != nil {
		return nil, core.Wrap(err, "service.compute_user", "")
	}
	return cred, writeFile(path, []byte(u.Username+"\n"), 0o644)
}

// directory shows the control plane to the front door.
type directory struct{ control.Door }

// Resolve implements proxy.Directory.
func (d directory) Resolve(ctx context.Context, id string) (proxy.Target, error) {
	e, access, running, err := d.Endpoint(ctx, id)
	return proxy.Target{EndpointID: e.ID, ProjectID: e.ProjectID, BranchID: e.BranchID, Disabled: e.Disabled, Running: running, Access: access}, err
}

func (s *Server) serveHTTP(ctx context.Context, pgAddr string) error {
	listeners, err := proxy.Listen(ctx, s.cfg.HTTPListen, s.log)
	if err != nil {
		return cannotListen("--http-listen", s.cfg.HTTPListen, err)
	}
	addr := listeners[0].Addr().String()
	// admin.json is there before the server says that it is ready.
	if err := s.writeAdmin(ctx, "http://"+addr+"/api/v2", pgAddr); err != nil {
		return err
	}
	post := control.Post{BaseURL: cmp.Or(strings.TrimRight(s.cfg.PublicURL, "/"), "http://"+addr)}
	if s.cfg.SMTPURL != "" {
		if post.Mailer, err = mail.New(s.cfg.SMTPURL, s.cfg.SMTPFrom); err != nil {
			return err
		}
	}
	s.control.StartPost(ctx, post)
	server := &http.Server{
		Handler: httpd.New(httpd.Options{
			UseCases: s.control, Auth: s.control, Log: s.log, Ready: s.store.Ping, Metrics: s.metrics.handler(),
			RateLimit: s.cfg.RateLimit, PublicURL: s.cfg.PublicURL,
		}),
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{}, len(listeners))
	for _, l := range listeners {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("the API stopped", "error", err)
			}
		}()
	}
	s.onClose(func(ctx context.Context) {
		if err := server.Shutdown(ctx); err != nil {
			_ = server.Close()
		}
		for range listeners {
			<-done
		}
	})
	return nil
}

// identify makes sure that the control database and the data directory belong together: what one of them does not know is
// removed from the other.
func (s *Server) identify(ctx context.Context, pool *storage.Pool) error {
	const key = "data_directory"
	onDisk, err := os.ReadFile(s.layout.identity())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return core.Wrap(err, "service.identify", "")
	}
	known, err := s.store.Meta(ctx, key)
	if err != nil {
		return err
	}
	id := strings.TrimSpace(string(onDisk))
	switch {
	case id != "" && id == known:
		return nil
	case id == "" && known == "":
		id = core.NewUUID()
	case id == "" || known != "":
		return core.Errorf(core.KindUnavailable, "", "the data directory %s and the control database belong to different installations; check --data-dir and --database-url", s.layout.dir)
	default:
		// A new control database for an old data directory: a first start that was cut off, or a mistake.
		volumes, err := pool.List(ctx)
		if err != nil {
			return err
		}
		for _, v := range volumes {
			if !strings.HasPrefix(v, "template-") {
				return core.Errorf(core.KindUnavailable, "", "the data directory %s holds branches that the control database does not know; check --database-url, or restore the control database", s.layout.dir)
			}
		}
	}
	if err := writeFile(s.layout.identity(), []byte(id+"\n"), 0o600); err != nil {
		return err
	}
	claimed, err := s.store.ClaimMeta(ctx, key, id)
	if err == nil && claimed != id {
		return core.Errorf(core.KindUnavailable, "", "another server has just claimed the control database; start again")
	}
	return err
}

// writeAdmin writes admin.json, with the key that is there already when it still works.
func (s *Server) writeAdmin(ctx context.Context, apiURL, pgAddr string) error {
	if raw, err := os.ReadFile(s.layout.admin()); err == nil {
		_ = json.Unmarshal(raw, &s.admin) // a damaged file is replaced
	}
	if _, err := s.control.Authenticate(ctx, s.admin.APIKey, ""); err != nil {
		if !core.IsKind(err, core.KindUnauthorized) {
			return err
		}
		user, org, key, err := control.Admin{Store: s.store}.First(ctx)
		if err != nil {
			return err
		}
		s.admin = AdminFile{APIKey: key.Secret, OrgID: org.ID, UserID: user.ID}
	}
	s.admin.APIURL, s.admin.PGAddr, s.admin.Sizes = apiURL, pgAddr, s.sizes
	s.admin.PublicURL = strings.TrimRight(s.cfg.PublicURL, "/")
	if !s.fleet.Leads() {
		return nil
	}
	return s.saveAdmin()
}

// writeFile replaces a file so that a crash leaves the old or the new one.
func writeFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return core.Wrap(err, "service.write", "")
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return core.Wrap(err, "service.write", "")
	}
	return syncDir(filepath.Dir(path))
}

// resolves tells whether names under the domain resolve for programs of this machine, which ask the C library.
func resolves(ctx context.Context, domain string) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	name := "x." + domain
	if getent, err := exec.LookPath("getent"); err == nil {
		return exec.CommandContext(ctx, getent, "hosts", name).Run() == nil
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	return err == nil && len(addrs) > 0
}

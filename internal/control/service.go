// Package control holds the use cases and the state machines: the only writer of state. A change and the operations
// that carry it out are committed in one transaction.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

// Queue carries out operations; see internal/ops.
type Queue interface {
	// Enqueue inserts operations in the transaction of q, whose caller holds the lock of their branch.
	Enqueue(ctx context.Context, q store.Q, ops ...core.Operation) ([]core.Operation, error)
	// Record is Enqueue for one operation that is kicked at once and waited for.
	Record(ctx context.Context, q store.Q, op core.Operation) (core.Operation, error)
	// Kick starts the work on a branch, once the transaction is committed.
	Kick(branchID string)
	// Wait returns when an operation has ended.
	Wait(ctx context.Context, opID string) error
}

// Recorder counts what happens, for metrics. Its methods must not block.
type Recorder interface {
	OperationEnded(action core.OperationAction, status core.OperationStatus, took time.Duration)
	Woken(took time.Duration, err error)
	// Repaired counts a repair of a drift; see DriftKind.
	Repaired(kind string)
}

// Meter is told what computes do between its counts; see metering.Meter. Its methods must not block.
type Meter interface {
	// Wrote notes where the WAL of a branch ends.
	Wrote(branchID string, lsn core.LSN)
	// Sized notes that the logical size of a branch was looked at, and how much WAL it keeps, in bytes; -1: unknown.
	Sized(branchID string, history int64)
	// EndedAway notes that the last run of an endpoint's compute, of cu compute units, ended while no server watched.
	EndedAway(endpointID string, at time.Time, cu float64)
}

// Addressing says how clients reach the server.
type Addressing struct {
	Domain   string // endpoints are ep-….<Domain>
	Port     int    // advertised; written into hosts unless it is 5432
	Resolves bool   // names under Domain resolve here; else URIs use localhost and the endpoint option
	Region   string // default region id
}

// Options is what a Service is made of.
type Options struct {
	Store      *store.Store
	Queue      Queue
	Computes   *compute.Manager
	Driver     compute.Driver // of Computes
	Volumes    *storage.Pool
	WAL        *history.Dirs
	Builds     Builds
	Overlays   *postgres.Overlays
	Inspector  *postgres.Inspector
	Sealer     *auth.Sealer
	Init       postgres.InitOptions // OS user of computes; folders are filled in
	DataDir    string
	RunDir     string // short path for sockets
	Reconcile  ReconcileOptions
	Addressing Addressing
	Recorder   Recorder
	Meter      Meter
	Fleet      Fleet
	Peers      Peers
	History    HistoryOptions

	OperationsKeep time.Duration // how long the record of an operation is kept; 0: DefaultOperationsKeep
	Log            *slog.Logger
}

// Service is the use cases. Every method checks first what the caller may see: what it may not is KindNotFound.
type Service struct {
	Options
	log *slog.Logger

	waking    singleflight.Group // by endpoint
	readiness readiness
	locks     keyedLocks // by branch: who changes its volume, or copies it
	crashes   crashLog
	seen      sync.Map // compute id → catalog fingerprint that the control database has
	full      fullFlag
	drafts    sync.Map // templates that are being made
	drift     reconciler
	replicas  replicas
	dumps     *semaphore.Weighted // of schemas, at once
	measured  sync.Map            // branch id → sizing
	history   historian

	post     Post
	letters  chan struct{} // wakes who sends them
	expiry   chan struct{} // wakes who deletes branches that expire
	stopPost context.CancelFunc

	taking   sync.Mutex // see takeOver
	stop     context.CancelFunc
	stopOnce sync.Once
	work     sync.WaitGroup
}

// New makes a Service. Recover must be called before anything else.
func New(o Options) *Service {
	return &Service{
		Options: o, log: o.Log, letters: make(chan struct{}, 1), expiry: make(chan struct{}, 1),
		drift: reconciler{nudge: make(chan struct{}, 1)}, dumps: semaphore.NewWeighted(maxDumps),
		history: historian{wake: make(chan struct{}, 1), changed: make(chan struct{}, 1)},
	}
}

func (a Addressing) withPort(host string) string {
	if a.Port == 5432 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, a.Port)
}

func (a Addressing) host(endpointID string, pooled bool) string {
	if pooled {
		endpointID += "-pooler"
	}
	return a.withPort(endpointID + "." + a.Domain)
}

// uri builds a connection string. params are added to its query.
func (a Addressing) uri(endpointID, role, password, database string, pooled bool, params url.Values) string {
	if params == nil {
		params = url.Values{}
	}
	params.Set("sslmode", "require")
	host := a.host(endpointID, pooled)
	if !a.Resolves {
		host = a.withPort("localhost")
		if pooled {
			endpointID += "-pooler"
		}
		params.Set("options", "endpoint="+endpointID)
	}
	u := url.URL{Scheme: "postgresql", Host: host, Path: "/" + database, RawQuery: params.Encode()}
	if password != "" {
		u.User = url.UserPassword(role, password)
	} else {
		u.User = url.User(role)
	}
	return u.String()
}

func (s *Service) endpointView(e core.Endpoint) EndpointView {
	v := EndpointView{Endpoint: e, Host: s.Addressing.host(e.ID, false), PoolerHost: s.Addressing.host(e.ID, true), ProxyHost: s.Addressing.Domain}
	return v
}

func (s *Service) endpointViews(list []core.Endpoint) []EndpointView {
	out := make([]EndpointView, len(list))
	for i, e := range list {
		out[i] = s.endpointView(e)
	}
	return out
}

func (s *Service) projectView(p core.Project) ProjectView {
	return ProjectView{Project: p, ProxyHost: s.Addressing.Domain}
}

// branch returns a branch of a project that the caller can see.
func (s *Service) branch(ctx context.Context, c core.Caller, projectID, id string) (core.Project, core.Branch, error) {
	p, err := s.project(ctx, c, projectID)
	if err != nil {
		return p, core.Branch{}, err
	}
	if !core.ValidID(id) {
		return p, core.Branch{}, core.NotFoundf("branch %q not found in project %s", clip(id), projectID)
	}
	b, err := s.Store.Branch(ctx, p.ID, id)
	return p, b, err
}

// endpoint returns an endpoint of a project that the caller can see.
func (s *Service) endpoint(ctx context.Context, c core.Caller, projectID, id string) (core.Project, core.Endpoint, error) {
	p, err := s.project(ctx, c, projectID)
	if err != nil {
		return p, core.Endpoint{}, err
	}
	missing := core.NotFoundf("endpoint %q not found in project %s", clip(id), projectID)
	if !core.ValidID(id) {
		return p, core.Endpoint{}, missing
	}
	e, err := s.Store.Endpoint(ctx, id)
	if err == nil && e.ProjectID != p.ID {
		return p, core.Endpoint{}, missing
	}
	return p, e, err
}

// clip keeps a hostile value short in a message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// newOperation fills what every operation has.
func newOperation(c core.Caller, projectID, branchID, endpointID string, action core.OperationAction) core.Operation {
	return core.Operation{
		ID: core.NewUUID(), ProjectID: projectID, BranchID: branchID, EndpointID: endpointID, Action: action, RequestID: c.RequestID,
	}
}

// hostOnly drops the port of a client's address.
func hostOnly(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

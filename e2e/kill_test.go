package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

var (
	killSeed    = flag.Uint64("kill-seed", 20, "chooses the moments at which TestKillAnywhere kills the server")
	killMoments = flag.Int("kill-moments", 4, "how often TestKillAnywhere kills the server in each kind of call")
)

const killLatest = 150 * time.Millisecond // after the call was sent

// call is one kind of call that the server is killed in. prepare runs before; send returns the operations of the answer;
// check runs on the restarted server when there was an answer.
type call struct {
	name    string
	prepare func(t *testing.T)
	send    func(t *testing.T, c *sdk.Client) ([]sdk.Operation, error)
	check   func(t *testing.T)
	gone    bool // the operations go with the project
}

// TestKillAnywhere kills the server a seeded moment after each kind of call. What was answered is carried out, the rest
// is carried out or never was, nothing is orphaned, and a project that nobody touches does not notice.
func TestKillAnywhere(t *testing.T) {
	s := start(t)
	other := s.project(t)
	conn := s.connect(t, other.URI)
	sql(t, conn, "create table ticks (n int primary key)")
	pid := s.postmaster(t, other.Branch)
	ticks := 0

	random := rand.New(rand.NewPCG(*killSeed, 0))
	for _, k := range killCalls(s, s.project(t)) {
		for i := range *killMoments {
			if k.prepare != nil {
				k.prepare(t)
			}
			after := time.Duration(random.Int64N(int64(killLatest)))
			name := fmt.Sprintf("%s, killed %v after it was sent", k.name, after.Round(time.Millisecond))

			var wg sync.WaitGroup
			var ops []sdk.Operation
			var callErr error
			client := s.Client
			began := time.Now()
			wg.Go(func() { ops, callErr = k.send(t, client) })
			// Acknowledged rows of the bystander, up to the very moment.
			for first := true; first || time.Since(began) < after; first = false {
				sql(t, conn, "insert into ticks values ($1)", ticks)
				ticks++
			}
			s.Kill9()
			wg.Wait()
			s.Start()
			s.settled(t)

			if now := s.postmaster(t, other.Branch); now != pid {
				t.Fatalf("%s: the bystander's compute was restarted: pid %d, was %d", name, now, pid)
			}
			conn = s.connect(t, other.URI)
			if n := value[int](t, conn, "select count(*) from ticks"); n != ticks {
				t.Errorf("%s: the bystander has %d of %d acknowledged rows", name, n, ticks)
			}
			if callErr != nil {
				t.Logf("%s: no answer", name)
				continue
			}
			if !k.gone {
				for _, op := range ops {
					now, err := s.GetOperation(t.Context(), op.ProjectID, op.ID)
					if err != nil || now.Status != api.OperationStatusFinished {
						t.Errorf("%s: operation %s is %+v, %v", name, op.Action, now, err)
					}
				}
			}
			t.Run(fmt.Sprintf("%s %d", k.name, i), func(t *testing.T) { k.check(t) })
			if t.Failed() {
				t.Fatalf("%s: see above", name)
			}
		}
	}
}

func killCalls(s *server, p *project) []call {
	var made *sdk.ProjectCreated
	var forked *sdk.BranchCreated
	var role *sdk.RoleOperations
	var database *sdk.DatabaseOperations
	var added *sdk.EndpointOperations
	var extra *project
	var leaf branch
	fresh := 0
	name := func(kind string) string { fresh++; return fmt.Sprintf("%s_%d", kind, fresh) }
	answers := func(t *testing.T, uri string) {
		if n := value[int](t, s.connect(t, uri), "select 41 + 1"); n != 42 {
			t.Error(n)
		}
	}
	endpoint := func(r *sdk.EndpointOperations, err error) ([]sdk.Operation, error) {
		if err != nil {
			return nil, err
		}
		return r.Operations, nil
	}
	awake := func(t *testing.T) {
		p.ops(t)(s.StartEndpoint(t.Context(), p.ID, p.Endpoint))
		p.awaitState(t, p.Endpoint, api.Active)
	}
	return []call{
		{name: "create project", send: func(t *testing.T, c *sdk.Client) (ops []sdk.Operation, err error) {
			if made, err = c.CreateProject(t.Context(), sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never)}); err == nil {
				ops = made.Operations
			}
			return ops, err
		}, check: func(t *testing.T) { answers(t, s.known(made).URI) }},

		{name: "create branch", send: func(t *testing.T, c *sdk.Client) (ops []sdk.Operation, err error) {
			if forked, err = c.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{Endpoints: readWrite()}); err == nil {
				ops = forked.Operations
			}
			return ops, err
		}, check: func(t *testing.T) { answers(t, (*forked.ConnectionUris)[0].ConnectionURI) }},

		{name: "create replica", prepare: awake, send: func(t *testing.T, c *sdk.Client) (ops []sdk.Operation, err error) {
			if added, err = c.CreateEndpoint(t.Context(), p.ID, sdk.EndpointCreate{BranchID: p.Branch, Type: api.ReadOnly}); err == nil {
				ops = added.Operations
			}
			return ops, err
		}, check: func(t *testing.T) {
			uri, err := s.ConnectionURI(t.Context(), p.ID, sdk.ConnectionURI{EndpointID: added.Endpoint.ID, Role: p.Role, Database: p.Database})
			if err != nil {
				t.Fatal(err)
			}
			answers(t, uri)
			p.ops(t)(s.DeleteEndpoint(t.Context(), p.ID, added.Endpoint.ID))
		}},

		{name: "suspend", prepare: awake, send: func(t *testing.T, c *sdk.Client) ([]sdk.Operation, error) {
			return endpoint(c.SuspendEndpoint(t.Context(), p.ID, p.Endpoint))
		}, check: func(t *testing.T) { p.awaitState(t, p.Endpoint, api.Idle); answers(t, p.URI) }},

		{name: "start", prepare: func(t *testing.T) { p.suspend(t, p.Endpoint) }, send: func(t *testing.T, c *sdk.Client) ([]sdk.Operation, error) {
			return endpoint(c.StartEndpoint(t.Context(), p.ID, p.Endpoint))
		}, check: func(t *testing.T) { p.awaitState(t, p.Endpoint, api.Active); answers(t, p.URI) }},

		{name: "create role", prepare: awake, send: func(t *testing.T, c *sdk.Client) (ops []sdk.Operation, err error) {
			if role, err = c.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: name("role")}); err == nil {
				ops = role.Operations
			}
			return ops, err
		}, check: func(t *testing.T) { answers(t, p.as(t, role.Role.Name, *role.Role.Password, p.Database)) }},

		{name: "create database", prepare: func(t *testing.T) { p.suspend(t, p.Endpoint) },
			send: func(t *testing.T, c *sdk.Client) (ops []sdk.Operation, err error) {
				database, err = c.CreateDatabase(t.Context(), p.ID, p.Branch, sdk.DatabaseCreate{Name: name("db"), OwnerName: p.Role})
				if err == nil {
					ops = database.Operations
				}
				return ops, err
			}, check: func(t *testing.T) { answers(t, p.as(t, p.Role, p.Password, database.Database.Name)) }},

		{name: "delete branch", prepare: func(t *testing.T) { leaf = p.branch(t, "") },
			send: func(t *testing.T, c *sdk.Client) ([]sdk.Operation, error) {
				_, err := c.DeleteBranch(t.Context(), p.ID, leaf.ID)
				return nil, err
			}, check: func(t *testing.T) {
				if _, err := s.Branch(t.Context(), p.ID, leaf.ID); !sdk.IsNotFound(err) {
					t.Errorf("the deleted branch: %v", err)
				}
			}},

		{name: "delete project", prepare: func(t *testing.T) { extra = s.project(t); extra.branch(t, "") },
			send: func(t *testing.T, c *sdk.Client) ([]sdk.Operation, error) {
				_, err := c.DeleteProject(t.Context(), extra.ID)
				return nil, err
			}, check: func(t *testing.T) {
				if _, err := s.Project(t.Context(), extra.ID); !sdk.IsNotFound(err) {
					t.Errorf("the deleted project: %v", err)
				}
			}, gone: true},
	}
}

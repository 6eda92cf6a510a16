package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

func (a *app) projectsPermissions() *cobra.Command {
	c := &cobra.Command{Use: "permissions [project] [flags]", Aliases: []string{"shares"}, Short: "List with whom a project is shared",
		Example: "  bough projects permissions\n  bough projects permissions shop -o json"}
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		a.firstIsProject(args)
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		all, err := cl.ProjectPermissions(ctx, id)
		if err != nil {
			return err
		}
		t := &table{header: []string{"EMAIL", "ID", "SINCE"}, empty: "Shared with nobody. Share it with: bough projects share <email>"}
		for _, p := range all {
			t.add(p.GrantedToEmail, p.ID, a.ago(p.GrantedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) projectsShare() *cobra.Command {
	c := &cobra.Command{Use: "share <email> [flags]", Short: "Let somebody from outside work in a project",
		Long: "Let whoever has an e-mail address work in a project, now or once there is such an account. It shows in their\n" +
			"bough projects list --shared.",
		Example: "  bough projects share robin@example.com --project-id shop"}
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		p, err := cl.ShareProject(ctx, id, args[0])
		if err != nil {
			return err
		}
		return a.done(p, "Shared %s with %s", id, p.GrantedToEmail)
	})
}

func (a *app) projectsUnshare() *cobra.Command {
	c := &cobra.Command{Use: "unshare <email> [flags]", Short: "End the sharing of a project with somebody",
		Example: "  bough projects unshare robin@example.com --project-id shop"}
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		all, err := cl.ProjectPermissions(ctx, id)
		if err != nil {
			return err
		}
		var names []string
		for _, p := range all {
			if p.ID != args[0] && !strings.EqualFold(p.GrantedToEmail, args[0]) {
				names = append(names, p.GrantedToEmail)
				continue
			}
			out, err := cl.UnshareProject(ctx, id, p.ID)
			if err != nil {
				return err
			}
			return a.done(out, "%s is no longer shared with %s", id, p.GrantedToEmail)
		}
		return fmt.Errorf("project %s is not shared with %q%s", id, args[0], didYouMean(args[0], names, "; see bough projects permissions"))
	})
}

func (a *app) projectsTransfer() *cobra.Command {
	var to, from string
	c := &cobra.Command{Use: "transfer <project>... --to-org <organization> [flags]", Short: "Give projects to another of your organizations",
		Long:    "Give projects to another organization that you belong to: all of them, or none. Computes go on running.",
		Example: "  bough projects transfer shop --to-org acme\n  bough projects transfer shop blog --from-org acme --to-org emca"}
	c.Flags().StringVar(&to, "to-org", "", "organization that gets them, by id, name or handle (required)")
	c.Flags().StringVar(&from, "from-org", "", "organization that all of them belong to (default: each its own)")
	return a.verb(c, cobra.MinimumNArgs(1), func(ctx context.Context, args []string) error {
		if to == "" {
			return usagef("give --to-org: the organization that gets the projects; bough orgs list lists yours")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		if to, err = findOrg(ctx, cl, to); err != nil {
			return err
		}
		if from != "" {
			if from, err = findOrg(ctx, cl, from); err != nil {
				return err
			}
		}
		var ids []string
		for _, name := range args {
			if name == "" {
				return usagef("the name of a project is empty")
			}
			id, err := a.findProject(ctx, cl, name)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		if err := cl.TransferProjects(ctx, from, to, ids...); err != nil {
			return err
		}
		return a.done(map[string]any{"project_ids": ids, "org_id": to}, "%s now belongs to %s", strings.Join(ids, ", "), to)
	})
}

func (a *app) projectsRequestTransfer() *cobra.Command {
	var last string
	c := &cobra.Command{Use: "request-transfer [project] [flags]", Short: "Offer a project to somebody else",
		Long:    "Make a request that whoever knows its id can accept: with bough projects accept-transfer. Pass it on like a password.",
		Example: "  bough projects request-transfer shop\n  bough projects request-transfer shop --ttl 1h -o json | jq -r .id"}
	c.Flags().StringVar(&last, "ttl", "", "how long it can be accepted, such as 1h or 7d (default: a day)")
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		a.firstIsProject(args)
		ttl, err := seconds("--ttl", last)
		if err != nil {
			return err
		}
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		r, err := cl.RequestTransfer(ctx, id, time.Duration(deref(ttl))*time.Second)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", r.ID)
		f.add("Project", r.ProjectID)
		f.add("Expires", a.when(r.ExpiresAt))
		f.add("Accept with", "bough projects accept-transfer "+r.ProjectID+" "+r.ID)
		return a.printFields(r, f)
	})
}

func (a *app) projectsAcceptTransfer() *cobra.Command {
	c := &cobra.Command{Use: "accept-transfer <project id> <request id> [flags]", Short: "Take over a project that somebody offers",
		Example: "  bough projects accept-transfer brisk-ember-81697531 0f4ec1f6-7a1c-4b6e-9f43-2b1d7a4f7a10 --org-id acme"}
	return a.verb(a.orgFlag(c), cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		cl, org, err := a.org(ctx)
		if err != nil {
			return err
		}
		if err := cl.AcceptTransfer(ctx, args[0], args[1], org); err != nil {
			return err
		}
		return a.done(map[string]string{"project_id": args[0], "org_id": org}, "%s now belongs to %s", args[0], org)
	})
}

func (a *app) jwksCmd() *cobra.Command {
	return group("jwks", "Say where the keys of a project's tokens are published",
		"The JSON Web Key Sets whose tokens are for a project. They are stored and listed; nothing reads them yet.", nil,
		a.jwksList(), a.jwksAdd(), a.jwksDelete())
}

func (a *app) jwksList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List a project's JWKS", Example: "  bough jwks list --project-id shop"}
	return a.verb(a.projectFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		all, err := cl.ProjectJWKS(ctx, id)
		if err != nil {
			return err
		}
		t := &table{header: []string{"ID", "PROVIDER", "URL", "BRANCH", "ROLES", "CREATED"}, empty: "No JWKS."}
		for _, j := range all {
			t.add(j.ID, j.ProviderName, j.JwksURL, orDash(deref(j.BranchID)), orDash(strings.Join(deref(j.RoleNames), ", ")), a.ago(j.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) jwksAdd() *cobra.Command {
	var provider, branch, audience string
	var roles []string
	c := &cobra.Command{Use: "add <url> [flags]", Aliases: []string{"create"}, Short: "Add where the keys of tokens are published",
		Example: "  bough jwks add https://login.example.com/.well-known/jwks.json --provider example --role app"}
	c.Flags().StringVar(&provider, "provider", "", "name of who issues the tokens (required)")
	c.Flags().StringVar(&branch, "branch", "", "branch that they are for, by name or id (default: every branch)")
	c.Flags().StringVar(&audience, "audience", "", "audience that tokens must name")
	c.Flags().StringSliceVar(&roles, "role", nil, "database roles that tokens may act as")
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if provider == "" {
			return usagef("give --provider: a name for who issues the tokens")
		}
		j := sdk.JWKSCreate{JwksURL: args[0], ProviderName: provider, JwtAudience: opt(audience)}
		if len(roles) > 0 {
			j.RoleNames = &roles
		}
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		if branch != "" {
			b, err := a.branch(ctx, cl, id, branch)
			if err != nil {
				return err
			}
			j.BranchID = &b.ID
		}
		made, err := cl.AddProjectJWKS(ctx, id, j)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", made.ID)
		f.add("Provider", made.ProviderName)
		f.add("URL", made.JwksURL)
		return a.printFields(made, f)
	})
}

func (a *app) jwksDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete <id> [flags]", Aliases: []string{"rm"}, Short: "Remove one of a project's JWKS",
		Example: "  bough jwks delete 0f4ec1f6-7a1c-4b6e-9f43-2b1d7a4f7a10"}
	return a.verb(a.yesFlag(a.projectFlag(c)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		if err := a.confirm("Delete JWKS %s of project %s?", args[0], id); err != nil {
			return err
		}
		out, err := cl.DeleteProjectJWKS(ctx, id, args[0])
		if err != nil {
			return err
		}
		return a.deleted(out, "JWKS "+out.ID+" ("+out.JwksURL+")")
	})
}

func (a *app) ipAllowCmd() *cobra.Command {
	const forms = "Addresses are single (203.0.113.7), blocks (10.0.0.0/8) or ranges (10.0.0.1-10.0.0.9), IPv4 or IPv6."
	change := func(use, short, example string, atLeast int, to func(have, named []string) ([]string, error)) *cobra.Command {
		var only bool
		c := &cobra.Command{Use: use, Short: short, Long: short + ". " + forms, Example: example}
		c.Flags().BoolVar(&only, "protected-only", false, "the list is for protected branches only; =false: for all")
		return a.verb(a.projectFlag(c), cobra.MinimumNArgs(atLeast), func(ctx context.Context, args []string) error {
			cl, id, err := a.project(ctx)
			if err != nil {
				return err
			}
			p, err := cl.Project(ctx, id)
			if err != nil {
				return err
			}
			var have []string
			if p.Settings != nil && p.Settings.AllowedIps != nil {
				have = deref(p.Settings.AllowedIps.Ips)
			}
			next, err := to(have, args)
			if err != nil {
				return err
			}
			ips := &sdk.AllowedIPs{Ips: &next}
			if c.Flags().Changed("protected-only") {
				ips.ProtectedBranchesOnly = &only
			}
			out, err := cl.UpdateProject(ctx, id, sdk.ProjectUpdate{Settings: &sdk.ProjectSettings{AllowedIps: ips}})
			if err != nil {
				return err
			}
			return a.printAllowed(&out.Project)
		})
	}
	show := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List the addresses that may connect", Example: "  bough ip-allow list"}
	return group("ip-allow", "Say from which addresses clients may connect to a project", "The list holds for new connections; an empty one lets everybody in. "+forms,
		nil,
		a.verb(a.projectFlag(show), cobra.NoArgs, func(ctx context.Context, _ []string) error {
			cl, id, err := a.project(ctx)
			if err != nil {
				return err
			}
			p, err := cl.Project(ctx, id)
			if err != nil {
				return err
			}
			return a.printAllowed(p)
		}),
		change("add <address>... [flags]", "Let more addresses connect", "  bough ip-allow add 203.0.113.7 10.0.0.0/8", 1,
			func(have, named []string) ([]string, error) {
				for _, ip := range named {
					if !slices.Contains(have, ip) {
						have = append(have, ip)
					}
				}
				return have, nil
			}),
		change("remove <address>... [flags]", "Take addresses off the list", "  bough ip-allow remove 203.0.113.7", 1,
			func(have, named []string) ([]string, error) {
				for _, ip := range named {
					if !slices.Contains(have, ip) {
						return nil, fmt.Errorf("%q is not on the list%s", ip, didYouMean(ip, have, "; see bough ip-allow list"))
					}
				}
				if len(have) > 0 && !slices.ContainsFunc(have, func(ip string) bool { return !slices.Contains(named, ip) }) {
					return nil, fmt.Errorf("that would empty the list, which lets everybody in; if you mean that: bough ip-allow reset")
				}
				return slices.DeleteFunc(have, func(ip string) bool { return slices.Contains(named, ip) }), nil
			}),
		change("reset [address]... [flags]", "Replace the list; without addresses everybody may connect", "  bough ip-allow reset\n  bough ip-allow reset 203.0.113.7", 0,
			func(_, named []string) ([]string, error) { return append([]string{}, named...), nil }),
	)
}

func (a *app) printAllowed(p *sdk.Project) error {
	ips := &sdk.AllowedIPs{}
	if p.Settings != nil && p.Settings.AllowedIps != nil {
		ips = p.Settings.AllowedIps
	}
	var f fields
	f.add("Project", p.ID)
	from := "everywhere"
	if p.Settings != nil {
		if some := connectionsFrom(p.Settings); some != "" {
			from = some
		}
	}
	f.add("Connections from", from)
	return a.printFields(ips, f)
}

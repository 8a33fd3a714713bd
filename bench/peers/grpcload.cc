// Peer-neutral closed-loop unary gRPC load client. Bytes in, bytes out: one request body is
// sent by N callers, each waiting for its answer, for S seconds after W seconds of warm-up.
// g++ -O2 -std=c++17 grpcload.cc -o grpcload $(pkg-config --cflags --libs grpc++) -lpthread
#include <grpcpp/grpcpp.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/resource.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>
using clk = std::chrono::steady_clock;
struct Slot { std::unique_ptr<grpc::ClientContext> ctx; std::unique_ptr<grpc::GenericClientAsyncResponseReader> rd; grpc::ByteBuffer resp; grpc::Status st; clk::time_point t0; int ch; };
static double cpu() { rusage u; getrusage(RUSAGE_SELF, &u); return u.ru_utime.tv_sec + u.ru_utime.tv_usec/1e6 + u.ru_stime.tv_sec + u.ru_stime.tv_usec/1e6; }
int main(int argc, char** argv) {
  std::string target="127.0.0.1:8001", method="/inference.GRPCInferenceService/ModelInfer", payload, save, tls, authority; int conc=1, chans=0; double secs=5, warm=1, deadline=30; std::vector<std::pair<std::string,std::string>> md;
  for (int i=1;i+1<argc;i+=2) { std::string k=argv[i], v=argv[i+1];
    if(k=="--target")target=v; else if(k=="--method")method=v; else if(k=="--payload")payload=v; else if(k=="--save")save=v; else if(k=="--tls")tls=v; else if(k=="--authority")authority=v;
    else if(k=="--concurrency")conc=stoi(v); else if(k=="--channels")chans=stoi(v); else if(k=="--seconds")secs=stod(v); else if(k=="--warmup")warm=stod(v); else if(k=="--deadline")deadline=stod(v);
    else if(k=="--metadata"){auto p=v.find('=');md.emplace_back(v.substr(0,p),v.substr(p+1));} else {fprintf(stderr,"unknown %s\n",k.c_str());return 2;} }
  if(chans<=0) chans=(conc+7)/8;
  std::ifstream f(payload,std::ios::binary); std::stringstream ss; ss<<f.rdbuf(); std::string body=ss.str();
  grpc::Slice sl(body.data(), body.size()); grpc::ByteBuffer req(&sl,1);
  grpc::ChannelArguments a; a.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL,1); a.SetMaxReceiveMessageSize(-1); a.SetMaxSendMessageSize(-1); if(!authority.empty()) a.SetSslTargetNameOverride(authority);
  std::shared_ptr<grpc::ChannelCredentials> cred=grpc::InsecureChannelCredentials(); if(!tls.empty()){std::ifstream tf(tls);std::stringstream ts;ts<<tf.rdbuf();grpc::SslCredentialsOptions so;so.pem_root_certs=ts.str();cred=grpc::SslCredentials(so);}
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for(int i=0;i<chans;i++){ auto c=grpc::CreateCustomChannel(target,cred,a); if(!c->WaitForConnected(std::chrono::system_clock::now()+std::chrono::seconds(10))){printf("{\"error\":\"connect\"}\n");return 1;} stubs.push_back(std::make_unique<grpc::GenericStub>(c)); }
  grpc::CompletionQueue cq; std::vector<Slot> s(conc); std::vector<float> lat; lat.reserve(1<<20);
  auto fire=[&](Slot& x){ x.ctx=std::make_unique<grpc::ClientContext>(); x.ctx->set_deadline(std::chrono::system_clock::now()+std::chrono::milliseconds((int)(deadline*1000))); for(auto&m:md)x.ctx->AddMetadata(m.first,m.second); x.resp.Clear(); x.t0=clk::now(); x.rd=stubs[x.ch]->PrepareUnaryCall(x.ctx.get(),method,req,&cq); x.rd->StartCall(); x.rd->Finish(&x.resp,&x.st,&x); };
  auto begin=clk::now(), m0=begin+std::chrono::microseconds((long)(warm*1e6)), end=m0+std::chrono::microseconds((long)(secs*1e6));
  long err=0, inflight=0; std::string emsg; size_t rbytes=0; double c0=0; bool meas=false; clk::time_point tlast=m0;
  for(int i=0;i<conc;i++){ s[i].ch=i%chans; fire(s[i]); inflight++; }
  void* tag; bool ok;
  while(inflight && cq.Next(&tag,&ok)) { Slot& x=*(Slot*)tag; auto now=clk::now(); inflight--;
    if(!meas && now>=m0){meas=true;c0=cpu();}
    if(now>=m0 && now<end) { if(x.st.ok()){lat.push_back(std::chrono::duration<float,std::micro>(now-x.t0).count()); tlast=now;} else {err++; emsg=x.st.error_message();} }
    if(!x.st.ok() && emsg.empty()) {emsg=x.st.error_message();}
    if(x.st.ok() && !rbytes){ rbytes=x.resp.Length(); if(!save.empty()){ std::vector<grpc::Slice> v; x.resp.Dump(&v); std::ofstream o(save,std::ios::binary); for(auto&q:v)o.write((const char*)q.begin(),q.size()); } }
    if(now<end && err<1000){ fire(x); inflight++; } }
  double c1=cpu(); std::sort(lat.begin(),lat.end()); auto q=[&](double p){return lat.empty()?0.0:(double)lat[std::min(lat.size()-1,(size_t)(p*lat.size()))];}; double sum=0; for(float v:lat)sum+=v;
  std::string e; for(char ch:emsg) if(ch!='"'&&ch!='\\'&&(unsigned char)ch>=32) e+=ch; e=e.substr(0,300);
  printf("{\"ok\":%zu,\"errors\":%ld,\"rps\":%.1f,\"mean_us\":%.1f,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,\"client_cpu_s\":%.3f,\"concurrency\":%d,\"channels\":%d,\"request_bytes\":%zu,\"response_bytes\":%zu,\"seconds\":%.2f,\"error\":\"%s\"}\n",
    lat.size(),err,lat.size()/secs,lat.empty()?0:sum/lat.size(),q(.5),q(.9),q(.99),q(.999),lat.empty()?0.0:(double)lat.back(),c1-c0,conc,chans,body.size(),rbytes,secs,e.c_str());
  return err?1:0; }
